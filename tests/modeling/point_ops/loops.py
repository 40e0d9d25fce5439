"""Plain loops to compare the fast operations with."""

import numpy as np


def sample_plainly(cloud, num_samples, start, min_squared_norm=None):
    """Farthest point sampling of one (points, 3) float32 cloud, the lowest index among equally far points."""
    nearest = np.full(len(cloud), np.inf, dtype=np.float32)
    if min_squared_norm is not None:
        nearest[_squared_norm(cloud).astype(np.float64) <= min_squared_norm] = -1
    index = [start]
    while len(index) < num_samples:
        nearest = np.minimum(nearest, _squared_norm(cloud - cloud[index[-1]]))
        index.append(int(np.argmax(nearest)))
    return index


def sample_like_the_kernel(cloud, num_samples, min_squared_norm=1e-3):
    """Run the threads of the CUDA kernel one after the other."""
    count = len(cloud)
    block = max(min(1 << int(np.log2(count)), 512), 1)
    skipped = (
        _squared_norm(cloud).astype(np.float64) <= min_squared_norm
        if min_squared_norm is not None
        else np.zeros(count, dtype=bool)
    )
    nearest = np.full(count, 1e10, dtype=np.float32)
    index = [0]
    while len(index) < num_samples:
        distance = _squared_norm(cloud - cloud[index[-1]])
        best, best_index = [-1.0] * block, [0] * block
        for thread in range(block):
            for k in range(thread, count, block):
                if skipped[k]:
                    continue
                nearest[k] = min(distance[k], nearest[k])
                if nearest[k] > best[thread]:
                    best[thread], best_index[thread] = nearest[k], k
        stride = block // 2
        while stride:
            for thread in range(stride):
                if best[thread + stride] > best[thread]:
                    best[thread], best_index[thread] = best[thread + stride], best_index[thread + stride]
            stride //= 2
        index.append(best_index[0])
    return index


def neighbors_plainly(query, cloud, k):
    """Nearest neighbors of (queries, 3) in (points, 3), sorted by distance, then by index."""
    return [np.lexsort((np.arange(len(cloud)), _squared_norm(cloud - one)))[:k].tolist() for one in query]


def _squared_norm(rows):
    x, y, z = rows.T
    return x * x + y * y + z * z

#!/usr/bin/env bash
# The PCD reader of loaders.gl takes every binary number for one of four bytes: doubles become other coordinates.
#
# One would guess: SIZE and TYPE, which say how the fields lie, are followed, or a type that is not known is refused.
# What happens: in binary files x, y and z are read as float32 at the places of float64, so 1 2 3 becomes 0 0 0, without
# an error. The same cloud as text is right, as are binary files of float32.
# Matters to: who shows clouds in the browser (deck.gl): map coordinates need doubles, and pypcd4 and PDAL write them.
# Versions: @loaders.gl/pcd 4.4.2, @loaders.gl/core 4.4.4 (npm) on Node 20; files by pypcd4 1.5.1. Seen on 2026-12-01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile pypcd4==1.5.1 numpy==2.4.6
cd "$folder"
npm install --silent --no-fund --no-audit --prefix "$folder" @loaders.gl/core@4.4.4 @loaders.gl/pcd@4.4.2
venv/bin/python - <<'PYTHON'
import numpy as np
from pypcd4 import Encoding, PointCloud

points = np.array([[1.0, 2, 3], [4, 5, 6]])
for name, number in (("float32", np.float32), ("float64", np.float64)):
    cloud = PointCloud.from_points(points, ("x", "y", "z"), (number,) * 3)
    for encoding in (Encoding.ASCII, Encoding.BINARY, Encoding.BINARY_COMPRESSED):
        cloud.save(f"{name}_{encoding.value.lower()}.pcd", encoding=encoding)
PYTHON
cat > read.mjs <<'SCRIPT'
import {readFileSync} from 'node:fs';
import {parse} from '@loaders.gl/core';
import {PCDLoader} from '@loaders.gl/pcd';

console.log('@loaders.gl/pcd', PCDLoader.version);
console.log('guess: 1 2 3 4 5 6 six times');
let same = true;
for (const number of ['float32', 'float64']) {
  for (const encoding of ['ascii', 'binary', 'binary_compressed']) {
    const bytes = new Uint8Array(readFileSync(`${number}_${encoding}.pcd`));
    const cloud = await parse(bytes.buffer, PCDLoader, {worker: false});
    const points = Array.from(cloud.attributes.POSITION.value).join(' ');
    console.log(`seen:  ${number} ${encoding}: ${points}`);
    const wrong = number === 'float64' && encoding !== 'ascii';
    same &&= points === (wrong ? '0 0 0 0 0 0' : '1 2 3 4 5 6');
  }
}
if (!same) throw new Error('the behavior has changed');
SCRIPT
node read.mjs

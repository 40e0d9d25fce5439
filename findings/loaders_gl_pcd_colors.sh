#!/usr/bin/env bash
# The PCD reader of loaders.gl gives two different colors for one cloud, and none is right.
#
# One would guess: `rgb`, the packed color of PCD, reads alike from binary and compressed files; red is red.
# What happens: binary gives red and blue exchanged; compressed gives them exchanged and divided by 255 before they are
# stored in bytes, so that 255 becomes 1. There is no error, and pypcd4 reads back what it wrote.
# Matters to: who shows colored clouds or labels drawn as colors in the browser (deck.gl).
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

points = np.eye(3, dtype=np.float32)
colors = PointCloud.encode_rgb(np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8))
cloud = PointCloud.from_xyzrgb_points(np.column_stack([points, colors]))
for encoding in (Encoding.BINARY, Encoding.BINARY_COMPRESSED):
    name = f"{encoding.value.lower()}.pcd"
    cloud.save(name, encoding=encoding)
    print("pypcd4 reads back", name, PointCloud.decode_rgb(PointCloud.from_path(name).pc_data["rgb"]).tolist())
PYTHON
cat > read.mjs <<'SCRIPT'
import {readFileSync} from 'node:fs';
import {parse} from '@loaders.gl/core';
import {PCDLoader} from '@loaders.gl/pcd';

console.log('@loaders.gl/pcd', PCDLoader.version);
console.log('guess: red, green, blue (255 0 0 0 255 0 0 0 255) twice');
const expected = {binary: '0 0 255 0 255 0 255 0 0', binary_compressed: '0 0 1 0 1 0 1 0 0'};
let same = true;
for (const [encoding, wrong] of Object.entries(expected)) {
  const bytes = new Uint8Array(readFileSync(`${encoding}.pcd`));
  const cloud = await parse(bytes.buffer, PCDLoader, {worker: false});
  const colors = Array.from(cloud.attributes.COLOR_0.value).join(' ');
  console.log(`seen:  ${encoding}: ${colors}`);
  same &&= colors === wrong;
}
if (!same) throw new Error('the behavior has changed');
SCRIPT
node read.mjs

#!/usr/bin/env bash
# The LAS reader of loaders.gl gives class 130 for a ground point that is withheld.
#
# One would guess: `classification` is the class; in LAS up to 1.3 its five bits share a byte with the three flags
# synthetic, key point and withheld.
# What happens: the whole byte is given. Ground (2) is 34, 66 or 130 when a flag is set, without an error, so a filter
# for ground misses these points.
# Matters to: who colors or counts classes in the browser (deck.gl): tools mark noise and overlap with these flags.
# Versions: @loaders.gl/las 4.5.1, @loaders.gl/core 4.4.4 (npm) on Node 20; files by laspy 2.7.0. Seen on 2026-12-01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile laspy==2.7.0 numpy==2.4.6
cd "$folder"
npm install --silent --no-fund --no-audit --legacy-peer-deps --prefix "$folder" @loaders.gl/core@4.4.4 @loaders.gl/las@4.5.1
venv/bin/python - <<'PYTHON'
import laspy
import numpy as np

las = laspy.LasData(laspy.LasHeader(point_format=1, version="1.2"))
las.x = las.y = las.z = np.arange(4.0)
las.classification = np.full(4, 2)
las.synthetic, las.key_point, las.withheld = np.eye(4, dtype=np.uint8)[1:]
las.write("ground.las")
print("laspy reads", np.array(laspy.read("ground.las").classification).tolist())
PYTHON
cat > read.mjs <<'SCRIPT'
import {readFileSync} from 'node:fs';
import {parse} from '@loaders.gl/core';
import {LASLoader} from '@loaders.gl/las';

const bytes = new Uint8Array(readFileSync('ground.las'));
const cloud = await parse(bytes.buffer, LASLoader, {worker: false});
const classes = Array.from(cloud.attributes.classification.value).join(' ');
console.log('@loaders.gl/las', LASLoader.version);
console.log('guess: 2 2 2 2');
console.log(`seen:  ${classes}`);
if (classes !== '2 34 66 130') throw new Error('the behavior has changed');
SCRIPT
node read.mjs

"""Public names for type checkers, written by `python -m docs.tools.stubs`."""

from hf_any3d.conversions.act.adapters import convert_act_adapter as convert_act_adapter
from hf_any3d.conversions.act.convert import convert_act as convert_act
from hf_any3d.conversions.any2point.convert import convert_any2point as convert_any2point
from hf_any3d.conversions.detr3d.convert import convert_detr3d as convert_detr3d
from hf_any3d.conversions.dgcnn import convert_dgcnn as convert_dgcnn
from hf_any3d.conversions.imagebind_audio import convert_imagebind_audio as convert_imagebind_audio
from hf_any3d.conversions.minigpt3d.convert import (
    convert_minigpt3d as convert_minigpt3d,
    convert_minigpt3d_parts as convert_minigpt3d_parts,
)
from hf_any3d.conversions.openshape.convert import convert_openshape as convert_openshape
from hf_any3d.conversions.patchalign3d.convert import convert_patchalign3d as convert_patchalign3d
from hf_any3d.conversions.point_transformer_v3.convert import convert_ptv3 as convert_ptv3
from hf_any3d.conversions.point_transformer_v3.find3d import convert_find3d as convert_find3d
from hf_any3d.conversions.pointgpt import convert_pointgpt as convert_pointgpt
from hf_any3d.conversions.pointnet import convert_pointnet as convert_pointnet
from hf_any3d.conversions.recon.convert import convert_recon as convert_recon
from hf_any3d.conversions.spatiallm.convert import convert_spatiallm as convert_spatiallm
from hf_any3d.conversions.uni3d.convert import convert_uni3d as convert_uni3d

"""ImageBind's audio encoder as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import Converter, Program, Record

RECORD = Record(
    encoders={"ImageBindAudioConfig": "ImageBindAudioModel"},
    converters={"convert_imagebind_audio": Converter("imagebind_audio")},
    programs=(Program("ImageBind's audio encoder", "convert_imagebind_audio", {r"modality_trunks\.audio\.": {}}),),
)

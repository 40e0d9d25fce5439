"""Stage II: the student, the decoder that predicts what is masked, and the frozen autoencoder."""

from hf_any3d.conversions.act.autoencoder_names import AUTOENCODER
from hf_any3d.conversions.act.student_names import BLOCKS, STUDENT
from hf_any3d.conversions.renaming import Names, under

PRETRAINING: Names = {
    # Nothing ever reads the scores of codes that this layer gives.
    r"ACT_encoder\.lm_head\.": None,
    r"ACT_encoder\.cls_head\.": "feature_head.",
    **under("ACT_encoder.", "act.", STUDENT),
    **under("dvae_tokenizer.", "autoencoder.", AUTOENCODER),
    r"mask_token$": "mask_token",
    r"cls_pos$": "decoder_class_position",
    r"decoder_pos_embed\.": "decoder_position_embed.",
    **under("ACT_decoder.blocks.", "decoder.layers.", BLOCKS),
    r"ACT_decoder\.norm\.": "decoder_norm.",
    r"proj_head\.": "prediction_head.",
}

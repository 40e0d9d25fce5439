"""Configuration of APPT."""

from dataclasses import dataclass, field

from hf_any3d.tuners.tuners_utils import EncoderLayersConfig


@dataclass
class APPTConfig(EncoderLayersConfig):
    """Insert a prompt that is made of the tokens of a cloud anew before every layer (adaptive point-prompt tuning).

    For frozen encoders of any modality, and point transformers. The prompt is the maximum plus the mean of the tokens
    that the first adapted layer reads. It is the same before each layer, and what earlier layers made of it stays, so
    the sequence grows by one token per layer; behind the last layer the newest one is the prompt itself. Each token x
    is replaced once by x + w (x) + v (x - mean of the tokens) + b, three trained numbers in all. Around an encoder of
    another modality, this takes the place of its positions: nothing is projected into views, but for encoders with
    positions inside their attention. Point transformers keep their pretrained positions; the prompt gets none.

    By default tokenizer, class token, output norm and head are trained and saved with it. The tokens of the paper are
    those of a model with `tokenizer="point_pn_full"`, and a head reads the prompts with
    `pooling=["max_plus_mean"]`.

    Source: the released program of arXiv 2509.00374. Where it differs:

    - it adds a trained table of positions by the order of sampling, by which results depend on the order of points:
      `order_table=True`;
    - it trains no class token: `APPTConfig.published()`;
    - its mean over tokens is that of the first cloud of a batch, for all clouds: the model's
      `pooling=["max_plus_first_mean"]`.
    """

    method = "APPT"
    released = {  # noqa: RUF012
        "order_table": True,
        "modules_to_save": ["point_tokenizer", "output_norm", "classifier"],
    }

    order_table: bool = field(
        default=False,
        metadata={
            "help": "Whether to add a trained position to each token, by its number in the order of sampling. It "
            "starts at zero, and makes results depend on the order of a cloud's points."
        },
    )

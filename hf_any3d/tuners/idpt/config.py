"""Configuration of IDPT."""

from dataclasses import dataclass, field

from hf_any3d.tuners.idpt.module import PROMPT_MODULES
from hf_any3d.tuners.tuners_utils import EncoderTunerConfig


@dataclass
class IDPTConfig(EncoderTunerConfig):
    """Add a prompt that a small module makes of the tokens of each cloud (instance-aware dynamic prompt tuning, IDPT).

    Before a layer, by default the last one, the module reads the tokens of the patches and returns one token, which
    goes on with them to the end. A head can read it: `pooling=["cls", "prompt_mean", "max"]` in the config of an ACT
    classifier. For segmentation, `keep_prompts=False` removes each prompt after its layer, and leaves it, before and
    after that layer, to a head with `segmentation_pooling="prompts"`.

    The encoder is frozen and gradients are those of the trained weights alone; in the released program it stays
    differentiable, at the cost of full training, and its gradients count where the norm is clipped.
    """

    method = "IDPT"
    # The name of the position lacks "cls", by which the program finds what to train.
    released = {"train_position": False}  # noqa: RUF012
    choices = {"prompt_module": tuple(PROMPT_MODULES)}  # noqa: RUF012

    prompt_layers: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the layers before which prompts are made; None for the last one."}
    )
    prompt_module: str = field(
        default="dgcnn",
        metadata={
            "help": "What makes a prompt: 'dgcnn', three layers on graphs of neighbors in the space of features, "
            "'dgcnn_light2', two of them, 'dgcnn_light', one, 'mlp', none, or a 'transformer' block."
        },
    )
    neighbors: int = field(default=20, metadata={"help": "Neighbors of a token in these graphs, itself included."})
    keep_prompts: bool = field(
        default=True, metadata={"help": "Whether prompts go on to later layers; False removes them after their own."}
    )
    train_position: bool = field(
        default=True,
        metadata={"help": "Train the position of the prompts; False keeps it random, as in the released program."},
    )

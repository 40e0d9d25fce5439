"""Configuration of PointGST."""

from dataclasses import dataclass, field

from hf_any3d.modeling.point_ops.spectral import DISTANCES, SCALES, GraphSettings
from hf_any3d.tuners.tuners_utils import EncoderLayersConfig


@dataclass
class PointGSTConfig(EncoderLayersConfig):
    """Adapt the tokens of frozen layers between eigenvectors of graphs of their positions (PointGST).

    Tokens are projected down, taken to the eigenvectors of the graph of all tokens and to those of small graphs along
    a curve, changed there by one shared layer, taken back and projected up. In a point transformer the adapter reads
    the tokens between attention and MLP and adds to the block's output; in other layers it reads and changes the
    output.

    By default the answer depends neither on the other clouds of a batch nor on the signs of eigenvectors, and rounding
    of the coordinates changes it little. `published()` returns the settings of the released program, whose answers
    depend on all three. The eigenvectors are computed once for each forward pass; their cost grows with the third
    power of the number of tokens.
    """

    method = "POINTGST"
    released = {  # noqa: RUF012
        "transform": "published",
        "signs": "solver",
        "distances": "expanded",
        "scale_over": "batch",
        # Cells of a hundredth of the unit sphere, as the program multiplies coordinates by 100.
        "curve_cell": 0.01,
    }
    choices = {  # noqa: RUF012
        "transform": ("fourier", "published"),
        "signs": ("averaged", "solver"),
        "distances": DISTANCES,
        "scale_over": SCALES,
    }

    r: int = field(default=36, metadata={"help": "Width between the projections."})
    local_size: int = field(default=32, metadata={"help": "Tokens of a local graph."})
    transform: str = field(
        default="fourier",
        metadata={"help": "'fourier' multiplies by the transposed eigenvectors first, 'published' last."},
    )
    signs: str = field(
        default="averaged",
        metadata={"help": "'averaged' runs both signs of each eigenvector, 'solver' the one that the solver returns."},
    )
    distances: str = field(
        default="exact", metadata={"help": "'exact', or 'expanded' for |a|² + |b|² - 2ab of more than 25 tokens."}
    )
    scale_over: str = field(
        default="cloud", metadata={"help": "The unit of distances is the smallest one of a 'cloud' or of the 'batch'."}
    )
    curve_cell: float | None = field(
        default=None,
        metadata={
            "help": "Edge of the curve's cells in units of the input, from the origin; None for a hundredth of the "
            "cloud's radius, from its lowest corner."
        },
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Initialize what follows the first projection to zero; False for random."}
    )

    def __post_init__(self):
        super().__post_init__()
        # Published coefficients are sums over eigenvectors, which a change of one's sign does not negate.
        if self.signs == "averaged" and self.transform == "published":
            raise ValueError("signs='averaged' with transform='published'; use signs='solver'")

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Fields whose values make predictions depend on the other clouds of a batch."""
        # The smallest distance in a batch may be that of another cloud.
        return [f"scale_over={self.scale_over!r}"] if self.scale_over == "batch" else []

    @property
    def graphs(self) -> GraphSettings:
        """Settings of the graphs; layers with equal ones share their eigenvectors."""
        # Equal settings are equal keys of the eigenvectors that layers share.
        return GraphSettings(self.local_size, self.distances, self.scale_over, self.curve_cell)

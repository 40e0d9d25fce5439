"""Describe a model for its card: the way it reads clouds, the place of its weights, and the model it was made from."""

from dataclasses import dataclass

from hf_any3d.model_card.subject import Subject
from hf_any3d.modeling.layers.unknown_score import unknown_settings
from hf_any3d.modeling.point_encoders.pretrained_base import PretrainedBaseMixin
from hf_any3d.modeling.records import Method
from hf_any3d.registry import MODEL_TYPES
from hf_any3d.utils.messages import percent

METHODS: dict[str, Method] = {}
"""By the `model_type` of a config, or the name of a class whose method is another one."""
for _name, _kind in MODEL_TYPES.items():
    # Some classes of a type follow another method than the type itself.
    METHODS |= _kind.methods
    if _kind.method is not None:
        METHODS[_name] = _kind.method
# Weights from which a tokenizer started, by `config.tokenizer_weights`.
_ORIGINS = {"random": "random weights", "generated_shapes": "weights trained on generated shapes"}
_STORED_HERE = "all of them are stored in this repository."
# Of models whose adapter repository also holds the rest of the model.
_BUILD_FROM_ADAPTER = "build_for_adapter({name}, config, {{}})"
_BUILD_AROUND_ENCODER = "from_encoder_pretrained(config=config)"


@dataclass
class Description:
    """Sentences and metadata on one model. All text is Markdown."""

    what: str  # processes the points
    stored: str = _STORED_HERE  # which parameters are in the repository, and where the others are loaded from
    base_model: str | None = None  # repository that the model was made from; paths are dropped
    relation: str = "adapter"  # how it was made from that: "adapter" or "finetune"
    base_program: str = _BUILD_FROM_ADAPTER  # builds the base of an adapter from `config`; `{name}` is quoted
    stage: str = ""  # of the method's training, to follow its name
    is_control: bool = False  # whether the encoder's weights are no pretrained ones on purpose
    tags: tuple[str, ...] = ()


def describe(subject: Subject) -> Description:
    """Describe a model for its card."""
    method = method_of(subject)
    # The type of a class from elsewhere has no record; its model is taken for a single encoder.
    kind = MODEL_TYPES.get(subject.config.model_type)
    description = _DESCRIBED["encoder" if kind is None else kind.composition](subject)
    name = f"[{method.name}](https://arxiv.org/abs/{method.paper})" if method.paper else method.name
    # An adapter whose base is opened from elsewhere; nothing that was trained is missing.
    if not subject.is_complete and not subject.left_out:
        description.stored = "only those of the adapter are stored in this repository."
    description.what = f"{description.what}. Method: {name}{description.stage}."
    description.tags = method.tags
    # Only models with an unknown score compare a cloud, or its points, with those of their training.
    rows = unknown_settings(subject.config).rows
    if rows and subject.task.task == "point-cloud-segmentation":
        description.what += f" `unknown` (0 to 1) tells how much a point differs from {rows:,} of the training points."
        if subject.config.unknown.share is not None:
            description.what += (
                " With `none_of_these`, a point above 0.5 is rejected as none of these: at most "
                f"{percent(subject.config.unknown.share)} % of the points of each fold that was held out."
            )
    elif rows:
        things = subject.config.unknown.bank_rows
        negatives = f" and how much it resembles {things} generated non-objects" if things else ""
        description.what += (
            f" Next to the label, `unknown` (0 to 1) tells how much a cloud differs from the {rows} training "
            f"clouds{negatives}."
        )
        share = subject.config.unknown.share
        if share is not None:
            description.what += (
                f" A cloud above 0.5 is rejected as none of these: about {percent(share)} % of new clouds of the "
                "trained classes, estimated on held-out clouds, and some of the others."
            )
    return description


def method_of(subject: Subject) -> Method:
    """Return the method of a model's class or type; one with the name of the type if there is no entry."""
    model_type = subject.config.model_type
    own = Method(model_type, None, (model_type,), "A model that is not published reads points")
    return METHODS.get(subject.model_class.__name__) or METHODS.get(model_type, own)


def _describe_encoder(subject: Subject) -> Description:
    """Describe a model of one encoder, which may have started from another."""
    config = subject.config
    start = subject.start
    what = method_of(subject).reads.format(config=config)
    stored = _STORED_HERE
    if start:
        what += f", started from {subject.show_name(start)}"
    elif subject.is_trained:
        # Without a report nothing is known of the start, and nothing is said.
        what += f", started from {_ORIGINS[getattr(config, 'tokenizer_weights', 'random')]}"
    what += _adapted(subject)
    # The adapter alone is saved; its base stays where it was published.
    if subject.method and issubclass(subject.model_class, PretrainedBaseMixin):
        stored = "The frozen ones are loaded from the source in the config and verified with a checksum."
    return Description(what, stored, start, "adapter" if subject.method else "finetune")


def _describe_student(subject: Subject) -> Description:
    """Describe a model of one encoder that may have learned from a teacher."""
    description = _describe_encoder(subject)
    if subject.encoder:
        teacher = subject.show_name(subject.encoder)
        description.what += f". It learned to predict features from an autoencoder around {teacher}"
        if not subject.method:
            description.stored = f"The teacher's {subject.locate_encoder(subject.encoder)}"
    return description


def _describe_frozen_encoder(subject: Subject) -> Description:
    """Describe a frozen encoder between tokenizer and head, where it is stored, and the adapter."""
    config = subject.config
    # A control has other weights on purpose, to show what the pretrained ones are worth.
    is_control = config.encoder_weights != "pretrained"
    started = None if is_control else config.encoder_trained_from
    if started:
        what = f"An encoder that started as {subject.show_name(started)} and was changed in training reads the points"
    else:
        if is_control:
            name = subject.encoder or config.encoder_trained_from
            shape = f" of the shape of {subject.show_name(name)}" if name else ""
            encoder = f"A control: an encoder{shape} with {config.encoder_weights} weights, not the pretrained ones,"
        elif subject.encoder:
            encoder = f"A frozen {subject.show_name(subject.encoder)}"
        else:
            kind = config.encoder_config.model_type if config.encoder_config else "transformer"
            encoder = f"A frozen {kind} encoder"
        what = f"{encoder} reads the points through a trained tokenizer"
        if config.tokenizer_weights != "random":
            what += f" that started from {_ORIGINS[config.tokenizer_weights]}"
    # Of an encoder that was changed it says nothing that it has no adapters.
    what += _adapted(subject) or ("" if started else ", without adapters")
    # Weights that no hub has, changed or random ones, are stored with the model.
    is_stored_here = bool(started) or is_control
    return Description(
        what,
        _STORED_HERE if is_stored_here else f"The {subject.locate_encoder(config.encoder_name_or_path)}",
        None if is_control else started or subject.encoder,
        "finetune" if started else "adapter",
        _BUILD_AROUND_ENCODER if config.encoder_name_or_path else _BUILD_FROM_ADAPTER,
        is_control=is_control,
    )


def _describe_autoencoder(subject: Subject) -> Description:
    """Describe the codes and the teacher, if any, and where the teacher is stored."""
    config = subject.config
    teacher = subject.encoder
    # A first stage without a teacher has codes and decoder alone.
    if config.encoder_config is None:
        what = "Patches of points become discrete codes, and a decoder folds patches from the codes' vectors"
        return Description(what, base_model=teacher, stage=", first stage")
    kind = f"{config.encoder_config.model_type} encoder{' with random weights' if subject.is_trained else ''}"
    where = config.encoder_name_or_path
    return Description(
        "Patches of points become discrete codes, a frozen "
        f"{subject.show_name(teacher) if teacher else kind} reads the codes' vectors along with learned prompts, and "
        "a decoder folds patches from its output",
        f"The {subject.locate_encoder(where)}" if where else _STORED_HERE,
        base_model=teacher,
        base_program=_BUILD_AROUND_ENCODER,
        stage=", first stage",
    )


def _describe_chat_model(subject: Subject) -> Description:
    """Describe the pretrained parts and where they are stored."""
    config = subject.config
    # Parts without a record are stored in the repository.
    recorded = {name: config.part(name) for name in config.parts or {}}
    elsewhere = {name: part.name_or_path for name, part in recorded.items() if part.is_elsewhere}
    kinds = {"point_encoder": config.point_config.model_type, "language_model": config.text_config.model_type}
    encoder, language_model = (
        subject.show_name(elsewhere[part]) if part in elsewhere else f"a {kind} model" for part, kind in kinds.items()
    )
    stored = _STORED_HERE
    if elsewhere:
        shown = ", ".join(map(subject.show_name, elsewhere.values()))
        stored = f"The parts {shown} are loaded from where they are published and checked against checksums."
    return Description(
        # Not `capitalize`, which would lower the letters of names.
        f"{encoder[0].upper()}{encoder[1:]} reads the points, a Q-Former with {config.num_query_tokens} queries "
        f"extracts what matters, and {language_model} answers",
        stored,
        elsewhere.get("language_model"),
        stage=f", after stage {config.stage} of 4 of its training",
    )


def _describe_features(subject: Subject) -> Description:
    """Describe the sets of features and where frozen models are stored."""
    config = subject.config
    what = method_of(subject).reads.format(config=config)
    elsewhere = [config.part(name).name_or_path for name in config.parts or {} if config.part(name).is_elsewhere]
    stored = _STORED_HERE
    if elsewhere:
        shown = ", ".join(map(subject.show_name, elsewhere))
        stored = f"{shown}: loaded from where it is published and checked against a checksum."
    is_control = "encoder" in config.features and config.encoder_weights == "random"
    if is_control:
        what += ", a control: the point encoder has random weights"
    return Description(what, stored, elsewhere[0] if elsewhere else None, "finetune", is_control=is_control)


def _describe_detector(subject: Subject) -> Description:
    """Describe a detector, and the point encoder under its decoder if that is another one."""
    config = subject.config
    description = _describe_encoder(subject)
    if config.point_encoder_config is None:
        return description
    part = config.part("point_encoder")
    if part.name_or_path:
        description.what += (
            f". The point encoder {'started as' if part.stored else 'is'} {subject.show_name(part.name_or_path)}"
        )
    if part.is_elsewhere:
        description.stored = f"The point {subject.locate_encoder(part.name_or_path)}"
        description.base_program = "from_point_encoder_pretrained(config=config)"
    # A start of the whole detector says more than that of its encoder.
    description.base_model = description.base_model or part.name_or_path
    return description


def _describe_layout_writer(subject: Subject) -> Description:
    """Describe the encoder of scans and the language model."""
    config = subject.config
    point = config.point_config
    text = config.text_config
    return Description(
        f"A {METHODS[point.model_type].name} of {sum(point.depths)} blocks reads voxels of "
        f"{100 * config.grid_size:.3g} cm, and a "
        f"{text.model_type} language model of {text.num_hidden_layers} layers writes a line for each wall, door, "
        f"window and box{_adapted(subject)}",
        relation="adapter" if subject.method else "finetune",
    )


def _adapted(subject: Subject) -> str:
    return f", adapted by the PEFT method {subject.show_name(subject.method)}" if subject.method else ""


_DESCRIBED = {
    "encoder": _describe_encoder,
    "student": _describe_student,
    "frozen encoder": _describe_frozen_encoder,
    "autoencoder": _describe_autoencoder,
    "detector": _describe_detector,
    "features": _describe_features,
    "chat model": _describe_chat_model,
    "layout writer": _describe_layout_writer,
}
"""By what a model consists of, as its record states it."""

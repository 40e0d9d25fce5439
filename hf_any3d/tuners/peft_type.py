"""Our names among PEFT's methods."""

from __future__ import annotations

from peft import PeftType


def extend_peft_type(name: str) -> PeftType:
    """Add a member to PEFT's enum of methods, or return the one that is there.

    PEFT refuses methods whose name is no member, and an enum cannot be subclassed or extended by public means, so the
    member is entered in the enum's own tables.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


GUIDED_ADAPTER = extend_peft_type("GUIDED_ADAPTER")
PROMPT_TOKENS = extend_peft_type("PROMPT_TOKENS")
BITFIT = extend_peft_type("BITFIT")

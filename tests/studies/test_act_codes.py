"""The study of ACT's codebook: the rule that chooses a setting."""

from studies import act_codes


def test_the_rule_takes_the_smallest_error_among_codebooks_in_use():
    names = ("codes_used", "code_perplexity", "loss")
    figures = {
        "few codes": (100, 90, 0.1),
        "uneven": (200, 100, 0.1),
        "even": (200, 130, 0.2),
        "worse": (256, 200, 0.3),
    }
    rows = [{"setting": name, **dict(zip(names, own, strict=True))} for name, own in figures.items()]
    assert act_codes.choose(rows, 256) == "even" and act_codes.choose(rows[:2], 256) is None

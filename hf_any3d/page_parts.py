"""What our pages have in common; each is one HTML file that works without the network."""

from __future__ import annotations

import json

# For templates of `str.format`: what stands before the rules of the style, and behind the last function of the script.
PAGE_BEGIN = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
"""
PAGE_END = """onresize = draw;
// A frame that is shown later than it was made gets its size without an event.
new ResizeObserver(() => requestAnimationFrame(draw)).observe(canvas);
draw();
</script>
</html>
"""


def script_value(value: object) -> str:
    """A value of a script as text; what a name or a title says cannot end the script."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")

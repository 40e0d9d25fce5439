"""Programs that make the documentation: generated tables, the site, and checks of code blocks."""

"""What models share: heads, task mixins, and the checks of their `forward`."""

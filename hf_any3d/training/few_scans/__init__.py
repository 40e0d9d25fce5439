"""Learn classes from few scans: look at them, features of a frozen model with a linear head, and how sure it is."""

"""The hub: names that may be looked up there, what authors published, its files and licenses, weights by name."""

"""Models: what is at hand, and where a name leads. The small device model lies here too."""

"""Experience in, experience out: the layer that every family of algorithms shares."""

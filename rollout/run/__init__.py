"""What a run leaves, and how it tells where it stands: directory, trackers, intervals, figures."""

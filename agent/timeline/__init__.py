"""A long video as a timeline of actions: windows, answers for them smoothed over time, spans."""

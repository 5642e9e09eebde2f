"""Following a folder: every new video is answered once, by the newest model, for as long as the process runs."""

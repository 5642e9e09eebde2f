"""Foundation of every package: errors, files, clock, settings, SQLite, logs, processes, command-line options."""

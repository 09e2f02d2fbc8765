"""Who runs an application: today the process that was started, by itself."""

"""The applications that come with pulsar."""

"""The HTTP server and its page. Needs the extra [serve]."""

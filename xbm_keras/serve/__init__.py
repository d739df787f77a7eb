"""The HTTP server and its page. Needs the extra [serve].

- server: what is answered
- limits: what is let in
"""

"""The HTTP server and its page. Needs the extra [serve].

- server: what is answered; requests: what clients send
- served: a model and its index, and what they answer; passes: requests that share one
- service: from the start to the stop, and newer versions in between; metrics: what Prometheus is told
- limits: what is let in
"""

"""WSGI servers that are C extensions, and have no command line.

python serve_c.py bjoern|fastwsgi PORT APPLICATION
"""

import importlib
import sys

import apps

if __name__ == "__main__":
    name, port, application = sys.argv[1:]
    module = importlib.import_module(name)
    app = getattr(apps, application)
    if name == "bjoern":
        module.run(app, "127.0.0.1", int(port))
    else:
        module.run(wsgi_app=app, host="127.0.0.1", port=int(port), loglevel=0)

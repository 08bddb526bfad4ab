"""Run by test_push.py in a process of its own: `python push_script.py REPO FOLDER [--verify]`."""

import sys

from streamchat_hf.hub import push as module
from streamchat_hf.hub.push import push

if "--verify" not in sys.argv:  # what is tested is the sending
    module.verify = lambda *args, **options: None
print("COMMIT", push(*sys.argv[1:3]).commit)

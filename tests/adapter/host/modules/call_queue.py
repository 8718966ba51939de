"""One thing at a time on the model."""

import threading

queue_lock = threading.Lock()

"""The primitives of threading."""

import _thread

Lock = _thread.allocate_lock
RLock = _thread.RLock
local = _thread._local

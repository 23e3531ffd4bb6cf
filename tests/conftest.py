"""What every test run needs."""

import signal

# A shell starts background jobs with Ctrl-C ignored, and what is ignored stays so in every child:
# commands that tests interrupt would not listen.
signal.signal(signal.SIGINT, signal.default_int_handler)

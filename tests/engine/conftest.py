import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_run, also in the processes tests start

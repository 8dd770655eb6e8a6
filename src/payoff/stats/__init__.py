"""Pure numbers: arrays or Moments in, frozen dataclasses out. No SQL, no frames, no declarations."""

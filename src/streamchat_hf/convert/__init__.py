"""Published checkpoints and plain backbones become ours."""

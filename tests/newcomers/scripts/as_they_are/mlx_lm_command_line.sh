# mlx_lm's command line.
mlx_lm.generate() { llcuda run "$@"; }

mlx_lm.generate --model demo --prompt "Who are you?" --max-tokens 32 --temp 0

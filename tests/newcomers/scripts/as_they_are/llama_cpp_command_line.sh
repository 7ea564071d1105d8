# llama.cpp's command line.
llama-cli() { llcuda run "$@"; }

llama-cli -m demo -p "I believe the meaning of life is" -n 32 --temp 0 -c 512 -ngl 99 --top-k 40

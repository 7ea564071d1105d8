# llm's command line.
llm() { llcuda run "$@"; }

echo "def f(): return 1" | llm -m demo -s "Explain this code"

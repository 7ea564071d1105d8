# ollama's command line.
ollama() { llcuda "$@"; }

ollama run demo "Who are you?"
ollama cp demo mine
ollama list
ollama show mine
ollama rm mine
ollama ps

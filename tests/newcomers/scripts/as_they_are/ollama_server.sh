# ollama's server: requests of its README, against `llcuda serve demo --port 11434`.
curl --fail --silent http://localhost:11434/api/generate -d '{
  "model": "demo",
  "prompt": "Who are you?",
  "options": {"num_predict": 16}
}'
curl --fail --silent http://localhost:11434/api/chat -d '{
  "model": "demo",
  "messages": [{"role": "user", "content": "Who are you?"}],
  "options": {"num_predict": 16},
  "stream": false
}'
curl --fail --silent http://localhost:11434/api/tags

# llama.cpp's server: the gap in a program, against `llcuda serve qwen2.5-coder-0.5b`.
curl --fail --silent http://localhost:8080/infill --header "Content-Type: application/json" \
    --data '{"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n\nprint(add(1, 2))",
             "n_predict": 16}'

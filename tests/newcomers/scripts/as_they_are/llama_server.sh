# llama.cpp's server: requests of its README, against `llcuda serve demo`.
curl --fail --silent --request POST --url http://localhost:8080/completion \
    --header "Content-Type: application/json" \
    --data '{"prompt": "Building a website can be done in 10 simple steps:", "n_predict": 16}'
curl --fail --silent http://localhost:8080/v1/chat/completions \
    -H "Content-Type: application/json" -H "Authorization: Bearer no-key" \
    -d '{"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "Who are you?"}],
         "max_tokens": 16}'
curl --fail --silent http://localhost:8080/health
curl --fail --silent http://localhost:8080/props
curl --fail --silent http://localhost:8080/tokenize -d '{"content": "Hello"}'

//! Runs the targets of all builds.

use edge_lmm_fuzz::TARGETS;

mod support;

targets! {
    TARGETS,
    image: 3000,
    animation: 1500,
    y4m: 3000,
    mp4: 1500,
    sound: 3000,
    tokenizer_json: 2000,
    chat_template: 1500,
    control_tokens: 2000,
    request: 5000,
    http_request: 5000,
    chat_line: 5000,
    manifest: 3000,
    model_config: 3000,
    generation_config: 3000,
    record: 3000,
    bundle: 3000,
    checkpoint_files: 1500,
    gguf_header: 5000,
    gguf_model: 1500,
    gguf_vocabulary: 1500,
    safetensors: 3000,
    adapter: 3000,
    cache_entry: 2000,
    http_connection: 1500,
    web_address: 5000,
    constraint: 400,
    tool_calls: 3000,
    server_options: 100,
    profiles: 500,
    results: 1500,
    quantized: 3000,
    statistics: 3000,
}

"""The engine that hands its segments to other servers, vLLM's own or this project's, over the realtime protocol of vLLM."""

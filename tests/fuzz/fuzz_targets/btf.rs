#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| conntracer::fuzzing::run("btf", data));

// The DLPack 0.8 ABI structs (https://dmlc.github.io/dlpack), declared here so that nothing has to be installed.
#pragma once
#include <cstdint>

extern "C" {
struct DLDevice {
    int32_t device_type;  // 1 CPU, 2 CUDA, 3 CUDA host, 13 CUDA managed
    int32_t device_id;
};
struct DLDataType {
    uint8_t code;  // 0 int, 1 uint, 2 float, 6 bool
    uint8_t bits;
    uint16_t lanes;
};
struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements; null = contiguous
    uint64_t byte_offset;
};
struct DLManagedTensor {
    DLTensor dl_tensor;
    void* manager_ctx;
    void (*deleter)(DLManagedTensor*);
};
}

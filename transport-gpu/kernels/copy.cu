// Gathers scattered device memory into pinned host memory, or scatters it back: one block a tile, one pass over the
// bytes. The layout of `Tile` and the arithmetic of `place` are those of src/strided.rs; a test holds the two against
// each other.
//
// copy.ptx beside this file is what ships: python3 kernels/build.py
typedef unsigned long long u64;
typedef unsigned int u32;

struct Tile {
    u64 device;
    u64 host;
    u32 run_bytes;
    u32 stride;
    u32 runs;
    u32 unit;
};

// Where unit `index` of a tile lies on both sides.
static __device__ __forceinline__ void place(const Tile &tile, u32 index, u64 *device, u64 *host) {
    u32 per_run = tile.run_bytes / tile.unit;
    u32 run = index / per_run, within = index % per_run;
    *device = tile.device + ((u64)run * (u64)tile.stride + (u64)(within * tile.unit));
    *host = tile.host + (u64)index * (u64)tile.unit;
}

template <typename Unit>
static __device__ __forceinline__ void copy_tile(const Tile &tile, u32 to_host) {
    u32 units = tile.run_bytes / tile.unit * tile.runs;
    for (u32 index = threadIdx.x; index < units; index += blockDim.x) {
        u64 device, host;
        place(tile, index, &device, &host);
        u64 from = to_host ? device : host, to = to_host ? host : device;
        // Volatile on neither side: the stream's order and its event are what makes bytes visible.
        *(Unit *)to = *(const Unit *)from;
    }
}

extern "C" __global__ void transport_copy(const Tile *tiles, u32 count, u32 to_host) {
    for (u32 i = blockIdx.x; i < count; i += gridDim.x) {
        Tile tile = tiles[i];
        switch (tile.unit) {
        case 16: copy_tile<uint4>(tile, to_host); break;
        case 8: copy_tile<uint2>(tile, to_host); break;
        case 4: copy_tile<u32>(tile, to_host); break;
        default: copy_tile<unsigned char>(tile, to_host); break;
        }
    }
}

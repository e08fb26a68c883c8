// Threads that share a sequence, and their workspace.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>
#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

class Barrier {
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> generation{0};
    std::atomic<bool> deserted{false};

   public:
    // One of the threads is out of memory and will not come: the others stop waiting, for good, with the same error.
    void desert() { deserted.store(true, std::memory_order_relaxed); }
    void check() const {
        if (deserted.load(std::memory_order_relaxed)) throw std::bad_alloc();
    }
    void wait(int threads) {
        if (threads == 1) return;
        const int mine = generation.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived.store(0, std::memory_order_relaxed);
            generation.store(mine + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; generation.load(std::memory_order_acquire) == mine; spins++) {
            check();
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#endif
#if defined(__unix__) || defined(__APPLE__)
            if (spins > 200) sched_yield();  // somebody else may have the core that the others need
#endif
        }
    }
};

struct Range {
    int64_t first, last;
};
inline Range share(int64_t count, int parts, int part) { return {count * part / parts, count * (part + 1) / parts}; }

// Large new memory costs less to touch in large pages.
inline void in_large_pages([[maybe_unused]] void* from, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
    const uintptr_t page = 2 << 20, first = ((uintptr_t)from + page - 1) / page * page, last = ((uintptr_t)from + bytes) / page * page;
    if (last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
#endif
}

// Workspace, kept for the next call: new memory has to be cleared by the system first.
class Pool {
    struct Block {
        void* memory;
        int64_t bytes;
    };
    static constexpr int64_t LIMIT = 256 << 20;  // bytes kept
    std::mutex mutex;
    std::vector<Block> unused;
    int64_t kept = 0;

   public:
    void* take(int64_t& bytes) {
        bytes = (bytes + 63) / 64 * 64;
        {
            std::lock_guard<std::mutex> lock(mutex);
            auto best = unused.end();
            for (auto block = unused.begin(); block != unused.end(); ++block)
                if (block->bytes >= bytes && block->bytes <= 2 * bytes && (best == unused.end() || block->bytes < best->bytes))
                    best = block;
            if (best != unused.end()) {
                const Block found = *best;
                unused.erase(best);
                kept -= found.bytes;
                bytes = found.bytes;
                return found.memory;
            }
        }
        void* memory = std::aligned_alloc(64, bytes);
        if (!memory) throw std::bad_alloc();
        in_large_pages(memory, bytes);
        return memory;
    }
    void give(void* memory, int64_t bytes) {
        std::lock_guard<std::mutex> lock(mutex);
        unused.push_back({memory, bytes});
        kept += bytes;
        while (kept > LIMIT) {  // the oldest go first
            free(unused.front().memory);
            kept -= unused.front().bytes;
            unused.erase(unused.begin());
        }
    }
};
Pool pool;

template <typename T>
class Buffer {
    int64_t bytes;
    T* memory;

   public:
    explicit Buffer(int64_t count) : bytes(count * sizeof(T)), memory(count ? (T*)pool.take(bytes) : nullptr) {}
    Buffer(const Buffer&) = delete;
    ~Buffer() {
        if (memory) pool.give(memory, bytes);
    }
    T* get() const { return memory; }
    T& operator[](int64_t at) const { return memory[at]; }
};

}  // namespace

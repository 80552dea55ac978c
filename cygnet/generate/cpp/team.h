// Threads that go through one pass together.

#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace {

constexpr int SPINS = 2000;  // looks at the others before the processor is offered to other work

// All of a parallel region's threads call the same methods in the same order.
class Team {
   public:
    // Called by all of them first: there may be fewer than were asked for.
    void gather() {
#pragma omp single
        size = omp_get_num_threads();
    }

    // Do use(0) to use(count - 1), an equal share of neighbours each; wait until all is done.
    template <class Use>
    void share(int64_t count, Use use) {
        const int64_t own = omp_get_thread_num();
        const int64_t end = count * (own + 1) / size;
        for (int64_t i = count * own / size; i < end; i++) use(i);
        wait();
    }

    // The same, where some take longer: whoever is free takes the next.
    template <class Use>
    void share_unequal(int64_t count, Use use) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) use(i);
        wait();
    }

   private:
    void wait() {
        const int before = turn.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived.store(0, std::memory_order_relaxed);
            next.store(0, std::memory_order_relaxed);
            turn.store(before + 1, std::memory_order_release);
            return;
        }
        for (int looks = 0; turn.load(std::memory_order_acquire) == before; looks++) {
            if (looks < SPINS)
                pause();
            else
                std::this_thread::yield();
        }
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    int size = 0;
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> turn{0};
    alignas(64) std::atomic<int64_t> next{0};
};

}  // namespace

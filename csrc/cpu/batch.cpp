#include "cpu/batch.hpp"

#include <atomic>
#include <exception>
#include <thread>
#include <vector>

namespace modcut::cpu {
namespace {

template <class R>
class Room {
public:
    explicit Room(int64_t n)
        : stride_(small::stride_of<SerialTeam>(n)),
          large_(small::Memory<R>::large(n, stride_) / 8),
          little_(small::Memory<R>::little(n, stride_) / 8),
          memory_(large_.data(), little_.data(), n, stride_) {}
    const small::Memory<R>& memory() const { return memory_; }

private:
    int64_t stride_;
    std::vector<int64_t> large_, little_;
    small::Memory<R> memory_;
};

}  // namespace

template <class W>
void gomory_hu_batch(const W* w, int64_t b, int64_t n, int64_t apart, int64_t pitch, const BatchOut& out, int threads,
                     Poll& poll) {
    if (b == 0 || n == 0) return;
    const int outer = int(std::min<int64_t>(threads, b)), inner = std::max(1, threads / outer);
    std::atomic<int64_t> next{0};
    std::atomic<bool> stop{false};
    std::vector<std::exception_ptr> errors(outer);
    const auto worker = [&](int number) {
        try {
            Room<small::Residual<W>> room(n);
            for (int64_t i; !stop && (i = next++) < b;)
                run_team(inner, [&](auto& team) {
                    small::cut_tree(
                        team, w + i * apart, pitch, n, room.memory(),
                        {out.parent + i * n, out.weight + i * n, out.lower + i * n, out.status + i * small::kStatus},
                        [&] {
                            // The caller's thread alone may ask Python about signals.
                            if (number == 0 && team.rank() == 0) try {
                                    poll.check();
                                } catch (...) {
                                    errors[0] = std::current_exception();
                                    stop = true;
                                }
                            return stop.load();
                        });
                });
        } catch (...) {
            errors[number] = std::current_exception();
            stop = true;
        }
    };
    std::vector<std::thread> pool;
    for (int k = 1; k < outer; ++k) pool.emplace_back(worker, k);
    worker(0);
    for (auto& t : pool) t.join();
    for (auto& e : errors)
        if (e) std::rethrow_exception(e);
}

template void gomory_hu_batch(const float*, int64_t, int64_t, int64_t, int64_t, const BatchOut&, int, Poll&);
template void gomory_hu_batch(const double*, int64_t, int64_t, int64_t, int64_t, const BatchOut&, int, Poll&);
template void gomory_hu_batch(const int32_t*, int64_t, int64_t, int64_t, int64_t, const BatchOut&, int, Poll&);
template void gomory_hu_batch(const int64_t*, int64_t, int64_t, int64_t, int64_t, const BatchOut&, int, Poll&);

}  // namespace modcut::cpu

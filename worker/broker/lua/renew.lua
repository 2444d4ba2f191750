-- Renews the lease of messages that a worker holds; one that was put back meanwhile stays so.
--
-- KEYS[1]  sag.unacked_index  sorted set  scores moved on
-- ARGV     seconds of lease, then the tags
local untils = now_s() + ARGV[1]
for number = 2, #ARGV do
  redis.call('ZADD', KEYS[1], 'XX', untils, ARGV[number])
end

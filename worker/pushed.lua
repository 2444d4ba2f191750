-- Notes how a try to push went.
--
-- KEYS[1]  ns:{id}:task  hash        its field written, where the record still is
-- KEYS[2]  ns:pushes     sorted set  member moved on, or removed
-- ARGV     member, field of the record, state as JSON, seconds until the next try or ''
-- gives    1, or 0 when another has settled it meanwhile
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
if redis.call('HEXISTS', KEYS[1], 'status') == 1 then
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
end
if ARGV[4] == '' then
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('ZADD', KEYS[2], 'XX', string.format('%.6f', now_s() + ARGV[4]), ARGV[1])
end
return 1
